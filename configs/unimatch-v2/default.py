_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/jitter.py',
]
# As in fixmatch/default, not tuned for this method.
method = dict(type='UniMatchV2', threshold=0.7, rampup=0.2, decay=0.99, decay_start=10)
