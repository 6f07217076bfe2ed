_base_ = ['./equalizer.py']
method = dict(type='AEL', weight=1.0, rampup=0.0, decay=0.99)
