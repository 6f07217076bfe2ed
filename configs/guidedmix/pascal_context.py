# Sec. 4.5: lambda below 0.4 (Table 8).
_base_ = './voc.py'
data = dict(batch_size=8, crop=(480, 480))
method = dict(lambda_max=0.4)
