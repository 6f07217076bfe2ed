# Not in the paper: the detector learns from predictions of strong views, which hold errors like those on unlabeled images.
_base_ = './default.py'
method = dict(detector_view='strong')
views = dict(
    strong=[dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)), dict(type='RandomCutouts', number=3)])
