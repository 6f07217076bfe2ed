_base_ = './default.py'
views = dict(
    strong=[dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)), dict(type='RandomCutouts', number=3)])
