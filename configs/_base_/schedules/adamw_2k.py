schedule = dict(iterations=2000, warmup=0.05, power=0.9, validations=5)
optimizer = dict(type='AdamW', lr=5e-3, weight_decay=0.01)
