# OHEM on labelled images; the authors' program keeps at least 100,000 pixels of a rank's two images, mmseg counts for each.
# Their head learns at the backbone's rate here; the paper says ten times "in all experiments".
_base_ = ['./u2pl.py']
model = dict(decode_head=dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50000)))
data = dict(crop=(769, 769))
schedule = dict(epochs=200)
optimizer = dict(lr=0.01, weight_decay=5e-4)
evaluation = dict(mode='slide', crop=(769, 769), stride=(513, 513))
