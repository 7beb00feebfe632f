package tlsfile

import "os"

// private has nothing to look at: permissions are access control lists there, and the mode is made up.
func private(string, os.FileInfo) error { return nil }
