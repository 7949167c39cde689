"""The agent's meter beside two others, on the same graph, runtime and machine: mlcommons-loadgen and trtexec."""
