# Appendix C, semantic segmentation: lambda_fc 1, lambda_dc 100, xi 0.6; Appendix B: Adam at 1e-4 for the flaw detector (its
# betas as in the authors' program). A detector of the paper's 64 kernels would cost ten times the slim model's passes.
_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(
    type='GCT',
    right=None,  # a second architecture: the name of a preset, the path of an mmseg config, or a model config
    detector=dict(width=16, norm='bn'),
    consistency_weight=100.0,
    correction_weight=1.0,
    threshold=0.6,
    rampup=0.1,
    rampup_shape='cosine')
optimizers = dict(detector=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)))
