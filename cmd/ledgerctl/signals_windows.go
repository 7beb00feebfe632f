package main

import (
	"os"
	"os/exec"
)

// forwarded are the signals that must not end us while the command runs.
func forwarded() []os.Signal { return []os.Signal{os.Interrupt} }

// fromTerminal: a console sends Ctrl-C to every process attached to it.
func fromTerminal(os.Signal) bool { return true }

// exitStatus returns the exit code; Windows has no signals to report.
func exitStatus(state *os.ProcessState) (code int, signal string) { return state.ExitCode(), "" }

// deliver does nothing: a process cannot send Ctrl-C to another one.
func deliver(*exec.Cmd, os.Signal) {}
