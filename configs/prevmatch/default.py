_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/jitter.py',
]
method = dict(type='PrevMatch', interval=0.025)
