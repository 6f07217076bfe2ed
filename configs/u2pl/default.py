_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
    '../_base_/methods/u2pl.py',
]
method = dict(contrast=dict(dim=64, size=5000, background=5000))
views = dict(strong=[])  # images are mixed, nothing else
