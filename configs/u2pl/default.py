_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
# From random weights a teacher knows little after one epoch. Tuned on a different random seed of the synthetic dataset, seeds
# 10 to 12.
method = dict(
    type='U2PL',
    mix_prob=1.0,
    unlabeled_weight=0.5,
    warmup=0.25,
    decay_start=10,
    contrast=dict(dim=64, queue_size=5000, background_queue_size=5000))
views = dict(strong=[])  # images are mixed, nothing else
