package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// undelivered is why an event is in the spool and not, or not provably, in the ledger.
type undelivered struct {
	path string
	err  error
}

func (e *undelivered) Error() string { return e.err.Error() }
func (e *undelivered) Unwrap() error { return e.err }

// deliver records an event by way of the spool: nothing is lost when the ledger is unreachable, full, busy, or the power goes. safe is
// called when the event is on disk.
func (a *app) deliver(ctx context.Context, to target, log string, e *lineage.Event, safe func()) (*client.Recorded, error) {
	s, err := a.spool()
	if err != nil {
		return nil, err
	}
	path, err := s.put(to, log, e)
	if err != nil {
		// Without a spool there is still the ledger itself.
		a.note("warning: %v", err)
	} else {
		safe()
	}
	r, err := a.record(ctx, to, log, e)
	if err != nil {
		return nil, &undelivered{path, err}
	}
	if path != "" {
		if err := s.done(path); err != nil {
			a.note("warning: %v", err)
		}
	}
	return r, nil
}

// record opens the ledger, appends one event and closes it again. No error means that the receipt was verified, and is connected with
// the checkpoint that is remembered.
func (a *app) record(ctx context.Context, to target, log string, e *lineage.Event) (r *client.Recorded, err error) {
	s, err := a.openTarget(ctx, to, true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if stopped := s.stopped(); stopped != nil && err != nil {
			err = stopped // which explains what the client saw
			return
		}
		// Closing completes the checks; what it finds counts. Otherwise the receipt is here and a failure to close cleanly undoes nothing.
		if bad := s.Close(); bad != nil {
			if _, ok := errors.AsType[*client.UntrustedError](bad); ok && err == nil {
				r, err = nil, bad
			} else if err == nil {
				a.note("warning: recorded, but the ledger did not close cleanly: %s", plain(message(bad)))
			}
		}
	}()
	return s.Append(ctx, log, e)
}

// deliveryCode is the exit code of a failed delivery.
func deliveryCode(err error) int {
	var e *exitError
	switch {
	case errors.As(err, &e):
		return e.code
	case isUntrusted(err):
		return exitNotVerified
	case refused(err):
		return exitUnknown
	}
	if u, ok := errors.AsType[*undelivered](err); ok && u.path != "" {
		return exitSpooled
	}
	return exitUnknown
}

func isUntrusted(err error) bool {
	_, ok := errors.AsType[*client.UntrustedError](err)
	return ok
}

// refused reports whether sending the same event again can never succeed.
func refused(err error) bool {
	if _, ok := errors.AsType[*lineage.FieldError](err); ok {
		return true
	}
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return false
	}
	switch s.GRPCStatus().Code() {
	case codes.InvalidArgument, codes.AlreadyExists, codes.NotFound:
		return true
	}
	return false
}

// sayUndelivered is loud: somebody relies on the record.
func (a *app) sayUndelivered(err error) {
	u, ok := errors.AsType[*undelivered](err)
	if a.json() {
		view := map[string]any{"error": message(err), "recorded": false}
		if ok && u.path != "" {
			view["spooled"] = u.path
		}
		a.noteJSON(view)
		return
	}
	if !ok || u.path == "" {
		a.note("ledgerctl: NOT RECORDED, and nothing is kept: %s", plain(message(err)))
		if hint := advice(err); hint != "" {
			a.note("  %s", hint)
		}
		return
	}
	switch {
	case isUntrusted(err):
		a.note("ledgerctl: NOT VERIFIED: %s", plain(message(err)))
	case refused(err):
		a.note("ledgerctl: NOT RECORDED, the ledger refuses it: %s", plain(message(err)))
	default:
		a.note("ledgerctl: NOT RECORDED YET: %s", plain(message(err)))
	}
	if hint := advice(err); hint != "" {
		a.note("  %s", hint)
	}
	a.note("  The event is kept in %s", u.path)
	id := strings.TrimSuffix(filepath.Base(u.path), spoolSuffix)
	switch {
	case refused(err):
		a.note("  It will be refused again; drop it with: ledgerctl record --spool --drop %s", id)
	case isUntrusted(err):
		a.note("  Once the ledger is trusted again, `ledgerctl record --spool` sends it; `ledgerctl record --spool --drop %s` drops it.", id)
	default:
		a.note("  Send it later with: ledgerctl record --spool")
	}
}

// sayNoReceipt tells of a receipt that was not written: the event is recorded nevertheless.
func (a *app) sayNoReceipt(index uint64, err error) {
	if err != nil {
		a.note("ledgerctl: recorded at %s %d, but the receipt was not written: %s", a.log, index, plain(err.Error()))
		a.note("  Write it with: ledgerctl prove --log %s --index %d --out FILE", a.log, index)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// noteJSON writes one line of JSON to the standard error stream.
func (a *app) noteJSON(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps of plain values come here
	}
	a.note("%s", raw)
}

// manifestsDir is where they are kept, beside the spool.
const manifestsDir = "manifests"

// keepManifest stores a manifest that no body has room for under its digest, and returns the reference that stands for it.
func (a *app) keepManifest(role lineage.Role, raw []byte) (lineage.Reference, string, error) {
	s, err := a.spool()
	if err != nil {
		return lineage.Reference{}, "", err
	}
	dir := filepath.Join(filepath.Dir(s.dir), manifestsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return lineage.Reference{}, "", err
	}
	sum := sha256.Sum256(raw)
	path := filepath.Join(dir, fmt.Sprintf("%x.json", sum))
	f := lineage.Reference{
		Role: role, Kind: lineage.DocumentKind, Known: lineage.Computed, Digest: lineage.Digest{Algorithm: lineage.SHA256, Value: string(sum[:])},
		MediaType: lineage.ManifestMediaType, Size: int64(len(raw)),
	}
	return f, path, writeFileSync(path, raw, 0o600)
}
