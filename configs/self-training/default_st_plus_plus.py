# The student of ST++ (Yang et al., CVPR 2022, Sec. 3.2 and the official implementation): stored images are seen jittered, gray,
# blurred and with a rectangle of noise.
_base_ = [
    '../_base_/models/deeplabv3plus_lite0.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
]
method = dict(type='SelfTraining')
views = dict(
    strong=[
        dict(type='ColorJitter', brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, prob=0.8),
        dict(type='RandomGray', prob=0.2),
        dict(type='RandomBlur', prob=0.5, sigma=(0.1, 2.0)),
        dict(type='NoiseCutout', prob=0.5, area=(0.02, 0.4)),
    ])
