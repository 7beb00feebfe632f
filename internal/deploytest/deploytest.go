// Package deploytest holds what deploy/ offers to operators against what the programs really take and say.
//
// It holds tests only. Example configurations are loaded by ledgerd itself, manifests are read as YAML and their ports, probes, flags and
// variables looked up in ledgerd's own help, and the metrics in alerts are looked for at a ledgerd that runs. Images are not built and
// manifests are not applied here: that takes a container engine and a cluster.
package deploytest
