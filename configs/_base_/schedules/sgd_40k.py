schedule = dict(iters=40000, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=1e-4)
paramwise = dict(custom_keys=dict(decode_head=dict(lr_mult=10.0), auxiliary_head=dict(lr_mult=10.0)))
