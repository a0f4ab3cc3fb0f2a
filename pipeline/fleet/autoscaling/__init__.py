"""The autoscaler: as many replicas as there is work for, between the recipe's bounds.

python -m pipeline.fleet.autoscaling      looks every two seconds, until it is ended
"""
