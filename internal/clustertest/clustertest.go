// Package clustertest plays scenarios on clusters of real nodes within one process: real consensus, stores, ports and certificates, on file
// systems in memory that survive a kill as a disk does, with clocks and links that the scenario decides about.
//
// The scenarios are the scripts in testdata, in the language of go-internal/testscript with the commands of commands_test.go. What a
// script says happens, happens in order; what it expects is waited for. Every script ends with an audit: all nodes that run have the same
// entries and the same roots, and everything that was acknowledged is where it was acknowledged to be.
package clustertest
