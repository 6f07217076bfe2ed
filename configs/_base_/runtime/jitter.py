# The strong view of ST++, UniMatch and their successors: jitter of brightness, contrast, saturation and hue, gray, and blur.
_base_ = './default.py'
views = dict(
    strong=[
        dict(type='ColorJitter', brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, prob=0.8),
        dict(type='RandomGray', prob=0.2),
        dict(type='RandomBlur', prob=0.5, sigma=(0.1, 2.0))
    ])
