package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const defaultLedger = "./.ledger"

// target is where a ledger is: exactly one of the two is set.
type target struct {
	address   string // host:port, or several separated by commas, in the order given
	directory string // absolute
}

// String is the name of the ledger: that of several addresses does not depend on their order.
func (t target) String() string {
	if t.address == "" {
		return t.directory
	}
	list := strings.Split(t.address, ",")
	slices.Sort(list)
	return strings.Join(list, ",")
}

// isAddress reports whether s is HOST:PORT.
func isAddress(s string) bool {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return false
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	return err == nil && port > 0
}

// parseTarget decides what --ledger means. It must not depend on what is reachable, and a mistyped host must not become a new
// directory, so: HOST:PORT without a path separator is an address, and so are several with commas between; an existing directory, or what is
// written as a path, is a directory.
func parseTarget(s string) (target, error) {
	if s == "" {
		return target{}, usage("--ledger is empty: give HOST:PORT or a directory")
	}
	if strings.Contains(s, "://") {
		return target{}, usage("--ledger %s: give HOST:PORT without a scheme (TLS is --tls-ca), or a directory", s)
	}
	pathLike := strings.ContainsAny(s, `/\`) || s == "." || s == ".." || strings.HasPrefix(s, ".")
	if !strings.ContainsAny(s, `/\`) {
		list := strings.Split(s, ",")
		for i, a := range list {
			list[i] = strings.TrimSpace(a)
		}
		if !slices.ContainsFunc(list, func(a string) bool { return !isAddress(a) }) {
			return target{address: strings.Join(list, ",")}, nil
		}
		if len(list) > 1 && isAddress(list[0]) {
			return target{}, usage("--ledger %s: not all of it is HOST:PORT", s)
		}
	}
	info, err := os.Stat(s)
	switch {
	case err == nil && !info.IsDir():
		return target{}, usage("--ledger %s is a file; give HOST:PORT or a directory", s)
	case err != nil && !pathLike:
		return target{}, usage("--ledger %s is neither HOST:PORT nor a directory that exists; write ./%s for a new directory, or add the port (ledgerd listens on 7600)", s, s)
	}
	dir, err := filepath.Abs(s)
	if err != nil {
		return target{}, fmt.Errorf("--ledger %s: %w", s, err)
	}
	// One ledger has one name, however it is reached: what is remembered about it hangs on the name.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return target{directory: dir}, nil
}
