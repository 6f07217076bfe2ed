_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
# Without the ramp-up, a teacher that is sure too early holds on to its errors: tuned on another drawing of the embedded
# dataset, seeds 10 to 12.
method = dict(
    type='CutMix', mix='cutmix', consistency='ce', weight=1.0, rampup=0.5, threshold=0.97, per_pixel=False, decay=0.99)
views = dict(strong=[])  # images are mixed, nothing else
