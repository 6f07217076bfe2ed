# At first both networks err: without the ramp-up each would learn the other's errors.
_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='CPS', mix='cutmix', weight=1.0, rampup=0.5)
