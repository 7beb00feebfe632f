package main

import "os"

// reloadSignals make ledgerd reread its certificates; there is none here, the files are looked at every few seconds.
var reloadSignals []os.Signal
