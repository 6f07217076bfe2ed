# As voc_deeplabv2; the authors' program ramps up over 5 epochs with PSPNet.
_base_ = '../_base_/recipes/gct_voc_pspnet.py'
method = dict(
    type='GCT',
    right=None,
    detector=dict(width=64, norm='bn'),
    consistency_weight=100.0,
    correction_weight=1.0,
    threshold=0.6,
    rampup_epochs=5,
    rampup_shape='cosine')
optimizers = dict(detector=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)))
