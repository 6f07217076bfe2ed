# The official implementation ramps up over 5 epochs with PSPNet.
_base_ = '../_base_/recipes/gct_voc_pspnet.py'
method = dict(type='GCT', rampup='5 epochs')
