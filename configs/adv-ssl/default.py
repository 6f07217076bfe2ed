# GCT paper, Appendix C: adversarial weights 0.01 and 0.001. Hung et al.: Adam at 1e-4 for the discriminator; L_semi, which the
# GCT paper leaves out, has weight 0.1, T_semi 0.2 and begins after a quarter of the training. Slim as the model is.
_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(
    type='AdvSSL',
    discriminator=dict(width=16),
    labeled_weight=0.01,
    unlabeled_weight=0.001,
    semi_weight=0.0,
    threshold=0.2,
    semi_start=0.25)
optimizers = dict(discriminator=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)))
