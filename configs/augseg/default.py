_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/intensity.py',
]
method = dict(type='AugSeg', decay=0.99, decay_start=10)
