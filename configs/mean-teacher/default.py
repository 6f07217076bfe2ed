_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='MeanTeacher', decay_start=10)
views = dict(strong=[])  # student and teacher see the same view
