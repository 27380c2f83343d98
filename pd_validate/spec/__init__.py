"""What should be: cluster.yaml as typed, validated models; profiles; ports; the launch plan."""
