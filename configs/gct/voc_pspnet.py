# The authors' program ramps up over 5 epochs with PSPNet.
_base_ = ['../_base_/recipes/gct_voc_pspnet.py', '../_base_/methods/gct.py']
method = dict(rampup_epochs=5)
