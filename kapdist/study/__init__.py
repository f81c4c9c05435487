"""Settings times seeds, trained, attacked, compared: from one file to the verdict on its claims."""
