_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/jitter.py',
]
# Threshold and ramp-up as in fixmatch/default, not tuned for this method.
method = dict(type='UniMatch', threshold=0.7, rampup=0.2)
