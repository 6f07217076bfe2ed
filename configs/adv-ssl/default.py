# A slim discriminator, as the model is small.
_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='AdvSSL', discriminator=dict(width=16))
