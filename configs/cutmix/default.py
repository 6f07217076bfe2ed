_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(
    type='CutMix', mix='cutmix', consistency='ce', weight=1.0, threshold=0.97, per_pixel=False, decay=0.99)
views = dict(strong=[])  # images are mixed, nothing else
