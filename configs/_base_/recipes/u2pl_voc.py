# Classic and blender VOC differ in the split alone. No auxiliary head, and validation on the centre, as in the authors' program.
_base_ = ['./u2pl.py']
model = dict(auxiliary_head=None)
data = dict(crop=(513, 513))
schedule = dict(epochs=80)
optimizer = dict(lr=1e-3, weight_decay=1e-4)
evaluation = dict(mode='center-crop', crop=(513, 513))
