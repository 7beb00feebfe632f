package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/provledger/provledger/client/lineage"
)

// sendSpool delivers what is in the spool, each event to the ledger that it was meant for.
func (a *app) sendSpool(ctx context.Context) error {
	s, files, bad, err := a.readSpool()
	if err != nil {
		return err
	}
	sent, kept, code := 0, bad, exitOK
	if bad > 0 {
		code = exitUnknown
	}
	away := map[target]bool{} // these failed: the next event would fare no better, and perhaps wait as long again
	for _, f := range files {
		if away[f.to] {
			kept++
			continue
		}
		r, err := a.record(ctx, f.to, f.log, f.event)
		if err != nil {
			err = &undelivered{f.path, err}
			a.sayUndelivered(err)
			kept++
			if c := deliveryCode(err); code == exitOK || c == exitNotVerified {
				code = c
			}
			away[f.to] = !refused(err)
			continue
		}
		if err := s.done(f.path); err != nil {
			a.note("warning: %v", err)
		}
		sent++
		if !a.json() {
			fmt.Fprintf(a.stdout, "recorded: %s %s %d, event %s\n", f.to, f.log, r.Index, f.event.ID)
		}
	}
	if a.json() {
		err = a.printJSON(map[string]int{"sent": sent, "kept": kept})
	} else {
		_, err = fmt.Fprintf(a.stdout, "%s sent, %d kept in %s\n", count(sent, "event"), kept, s.dir)
	}
	if err == nil && code != exitOK {
		err = &exitError{code: code}
	}
	return err
}

// readSpool reads the spool and says which files in it are none.
func (a *app) readSpool() (s spool, files []spooled, bad int, err error) {
	if s, err = a.spool(); err != nil {
		return s, nil, 0, err
	}
	files, faults, err := s.list()
	for _, err := range faults {
		a.note("ledgerctl: left where it is: %v", err)
	}
	return s, files, len(faults), err
}

// spoolView is an event that waits.
type spoolView struct {
	EventID   string `json:"eventId"`
	Ledger    string `json:"ledger"`
	Log       string `json:"log"`
	SpooledAt string `json:"spooledAt"`
	Kind      string `json:"kind"`
	Action    string `json:"action"`
	Job       string `json:"job,omitempty"`
	File      string `json:"file"`
}

// listSpool shows what is in the spool.
func (a *app) listSpool() error {
	_, files, bad, err := a.readSpool()
	if err != nil {
		return err
	}
	views := []spoolView{}
	rows := [][]string{{"EVENT ID", "SPOOLED AT", "LEDGER", "LOG", "KIND", "ACTION", "JOB"}}
	for _, f := range files {
		e := f.event
		v := spoolView{e.ID.String(), f.to.String(), f.log, f.at, e.Kind.String(), lineage.ActionText(e.Kind, e.Action, e.PredicateType), fullName(e.Job), f.path}
		views = append(views, v)
		rows = append(rows, []string{v.EventID, plain(v.SpooledAt), plain(v.Ledger), plain(v.Log), v.Kind, plain(v.Action), plain(v.Job)})
	}
	if a.json() {
		err = a.printJSON(views)
	} else {
		err = table(a.stdout, rows)
	}
	if err == nil && bad > 0 {
		err = &exitError{code: exitUnknown}
	}
	return err
}

// dropSpooled removes an event from the spool: it is then recorded nowhere.
func (a *app) dropSpooled(text string) error {
	id, err := lineage.ParseID(text)
	if err != nil {
		return usage("--drop: %v", err)
	}
	s, err := a.spool()
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, id.String()+spoolSuffix)
	switch err := os.Remove(path); {
	case os.IsNotExist(err):
		return fmt.Errorf("the spool %s has no event %s: %w", s.dir, id, fs.ErrNotExist)
	case err != nil:
		return err
	}
	if a.json() {
		return a.printJSON(map[string]string{"dropped": id.String()})
	}
	_, err = fmt.Fprintf(a.stdout, "dropped: event %s\n", id)
	return err
}
