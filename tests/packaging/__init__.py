"""The images, the chart and k8s/: read, rendered and checked as a cluster would, without one.

chart.py renders; the other files are tests, one subject each.
"""
