_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='S4L', classifier=dict(width=16))
