_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='AEL', rampup=0.5, decay_start=10)  # as in cutmix/default
views = dict(strong=[])  # images are mixed, nothing else
