"""How good a restored picture is: metrics, the quality table, the cluster report and the classical baselines on the
same pixels."""
