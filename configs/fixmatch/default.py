_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/jitter.py',
]
method = dict(type='FixMatch', decay=0.99, decay_start=10)
