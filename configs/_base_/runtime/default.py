evaluation = dict(mode='whole')
data = dict(
    batch_size=8,  # labeled images per batch, over all ranks together
    unlabeled_batch_size=None,  # as many as labeled ones
    crop=None,  # None: half of the images' short side, a multiple of 32 between 96 and 512
    scale=(0.75, 1.5),
    flip=0.5,
    cat_max_ratio=0.75,  # a labeled crop of which one class fills more is sampled again; 1: never
    hidden=0,  # unlabeled images with a mask that judge the pseudo-labels at each validation; nothing learns from them
    workers=2)
views = dict(
    weak=[],  # crop, scale and flip come before the views
    strong=[dict(type='PhotoMetricDistortion', hue_delta=32), dict(type='RandomBlur'), dict(type='RandomGray')])
