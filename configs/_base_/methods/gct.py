# Ke et al., ECCV 2020, Appendix C, semantic segmentation; Appendix B: Adam at 1e-4 for the detector, its betas as in the
# authors' program.
method = dict(
    type='GCT',
    right=None,  # a second architecture: the name of a preset, the path of an mmseg config, or a model config
    detector=dict(width=64, norm='bn'),
    consistency_weight=100.0,
    correction_weight=1.0,
    threshold=0.6,
    rampup_epochs=3,  # passes through the unlabelled images
    rampup_shape='cosine')
optimizers = dict(detector=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)))
