"""Files as their authors publish them -> crowd file; one file per dataset."""
