"""Where files are measured: this machine, one behind SSH, or an Android phone; one protocol for all."""
