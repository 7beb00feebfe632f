//go:build unix

package main

import (
	"os/signal"
	"syscall"
	"testing"
)

// Under nohup SIGHUP is ignored; catching it would end that for us and for the command.
func TestIgnoredSignalsStayIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	signals, release := catchSignals()
	defer release()
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("SIGHUP is no longer ignored")
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if s := <-signals; s != syscall.SIGUSR1 {
		t.Errorf("got %v", s)
	}
}
