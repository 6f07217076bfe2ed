# Tu et al., GuidedMix-Net, Secs. 4.1 and 4.2: SGD at 1e-3, 40,000 iterations; scaling by 0.5 to 2, flips and "slight
# rotation", here 10 degrees. A batch has as many unlabeled images. ResNet-101 in Tables 5 to 10, ResNet-50 in Tables 1 to 4.
_base_ = '../runtime/default.py'
data = dict(scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0, rotation=10.0)
schedule = dict(iterations=40000, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4)
