_base_ = [
    '../_base_/models/deeplabv3plus_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
    '../_base_/methods/ael.py',
]
method = dict(rampup=0.5)  # as in cutmix/default
views = dict(strong=[])  # images are mixed, nothing else
