"""The agent's meter compared with mlcommons-loadgen and trtexec, on the same graph, runtime and machine."""
