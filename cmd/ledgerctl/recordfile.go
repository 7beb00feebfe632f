package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
)

const (
	// maxBatchEvents is how many events are recorded at once: each batch is all or nothing, one round trip and one proof.
	maxBatchEvents = 1_000

	// maxBatchBytes keeps a request below the server's 4 MiB, framing and log name included.
	maxBatchBytes = 4<<20 - 64<<10

	// maxEventJSON bounds one event as JSON: a body of 1 MiB in base64, and as much again for names and references.
	maxEventJSON = 4 << 20
)

// recordFile records the events of a file. Nothing of it goes through the spool: the file is there to be read again.
func (a *app) recordFile(ctx context.Context, name string) error {
	in, size := a.stdin, int64(0)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil {
			size = info.Size()
		}
		in = f
	} else {
		name = "standard input"
	}
	add, done := a.progress("recording "+name, size, true)
	defer done()
	r := &eventReader{name: name, progress: add}
	r.d = json.NewDecoder(io.TeeReader(bufio.NewReaderSize(in, 1<<20), r))
	first, err := r.next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s holds no event", name)
		}
		return err
	}
	i := &importer{app: a, source: r, started: time.Now()}
	err = i.run(ctx, first)
	done()
	if err != nil {
		if i.recorded > 0 {
			a.note("%s recorded before that; run the same command again to go on, nothing is recorded twice", count(i.recorded, "event"))
		}
		return err
	}
	return i.report()
}

// eventReader reads events one after the other, whether one JSON value or many.
type eventReader struct {
	name     string
	d        *json.Decoder
	progress func(int64)
	number   int // of the event read last, from 1
	window   int64
}

// Write sees what the decoder reads: it moves the progress bar and bounds an event, for the decoder holds a whole value in memory.
func (r *eventReader) Write(b []byte) (int, error) {
	r.progress(int64(len(b)))
	if r.window += int64(len(b)); r.window > 2*maxEventJSON {
		return 0, fmt.Errorf("event %d is larger than %d bytes", r.number+1, maxEventJSON)
	}
	return len(b), nil
}

func (r *eventReader) next() (*lineage.Event, error) {
	r.window = 0
	var raw json.RawMessage
	if err := r.d.Decode(&raw); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%s: event %d: not JSON: %w", r.name, r.number+1, err)
	}
	r.number++
	e, err := eventpb.ParseJSON(bytes.TrimSpace(raw))
	if err != nil {
		return nil, r.at(err)
	}
	return e, nil
}

func (r *eventReader) at(err error) error {
	return fmt.Errorf("%s: event %d: %w", r.name, r.number, err)
}

// importer records the events of a reader in batches.
type importer struct {
	app                  *app
	source               *eventReader
	s                    *session
	started              time.Time
	number               int // of the event added last, from 1
	batch                []*lineage.Event
	numbers              []int // of the events of the batch
	inBatch              map[lineage.ID]int
	batchBytes           int
	recorded, duplicates int
	last                 uint64 // index
	only                 *lineage.Event
}

func (i *importer) run(ctx context.Context, e *lineage.Event) error {
	next, err := i.source.next()
	single := errors.Is(err, io.EOF)
	if err != nil && !single {
		return err
	}
	if e.ID == (lineage.ID{}) && single {
		e.ID = lineage.NewID() // of one event the user sees the id; of many nobody could tell which are recorded already
	}
	return i.app.withLedger(ctx, true, func(s *session) error {
		i.s = s
		if single {
			return i.one(ctx, e)
		}
		return i.many(ctx, e, next)
	})
}

// one records the only event of a source.
func (i *importer) one(ctx context.Context, e *lineage.Event) error {
	if err := fits(e); err != nil {
		return fmt.Errorf("%s: event 1: %w", i.source.name, err)
	}
	i.only = e
	r, err := i.s.Append(ctx, i.app.log, e)
	if err != nil {
		return err
	}
	return i.app.printRecorded(e, r)
}

// many records the events of a source, of which two have been read.
func (i *importer) many(ctx context.Context, ahead ...*lineage.Event) error {
	var e *lineage.Event
	var fault error
	for fault == nil {
		if len(ahead) > 0 {
			e, ahead = ahead[0], ahead[1:]
		} else if e, fault = i.source.next(); fault != nil {
			break
		}
		fault = i.add(ctx, e)
	}
	if errors.Is(fault, io.EOF) {
		fault = nil
	}
	// What was read before a bad event is good: keep it, so that a second try begins where the fault is.
	return errors.Join(i.flush(ctx), fault)
}

// add puts an event into the batch, after sending the one that it does not fit into.
func (i *importer) add(ctx context.Context, e *lineage.Event) error {
	i.number++
	if err := checkEvent(e); err != nil {
		return fmt.Errorf("%s: event %d: %w", i.source.name, i.number, err)
	}
	m := eventpb.FromEvent(e)
	// The ledger refuses one id twice in a request. The same line twice, as when files were joined, is one event.
	if k, ok := i.inBatch[e.ID]; ok {
		if !proto.Equal(eventpb.FromEvent(i.batch[k]), m) {
			return fmt.Errorf("%s: event %d: event_id: %s is that of event %d, which has other content", i.source.name, i.number, e.ID, i.numbers[k])
		}
		i.recorded++
		i.duplicates++
		return nil
	}
	size := proto.Size(m) + 8 // field tag and length
	if len(i.batch) == maxBatchEvents || len(i.batch) > 0 && i.batchBytes+size > maxBatchBytes {
		if err := i.flush(ctx); err != nil {
			return err
		}
	}
	if i.inBatch == nil {
		i.inBatch = map[lineage.ID]int{}
	}
	i.inBatch[e.ID] = len(i.batch)
	i.batch, i.numbers, i.batchBytes = append(i.batch, e), append(i.numbers, i.number), i.batchBytes+size
	return nil
}

func checkEvent(e *lineage.Event) error {
	if e.ID == (lineage.ID{}) {
		return errors.New("event_id: is required where there are many events, so that the import can be run again")
	}
	return fits(e)
}

// flush records the batch, all of it or nothing.
func (i *importer) flush(ctx context.Context) error {
	events, numbers := i.batch, i.numbers
	i.batch, i.numbers, i.inBatch, i.batchBytes = nil, nil, nil, 0 // the reply refers to the old slice
	if len(events) == 0 {
		return nil
	}
	r, err := i.s.AppendBatch(ctx, i.app.log, events)
	if err != nil {
		return fmt.Errorf("%s: events %d to %d: %w", i.source.name, numbers[0], numbers[len(numbers)-1], &renumbered{err, numbers})
	}
	for k := range r.Len() {
		if r.Duplicate(k) {
			i.duplicates++
		}
		i.last = max(i.last, r.Index(k))
	}
	i.recorded += len(events)
	return nil
}

// renumbered is an error about a batch, with the events called as they are in the file.
type renumbered struct {
	error
	numbers []int
}

var position = regexp.MustCompile(`\bevents\[(\d+)\]`)

func (e *renumbered) Unwrap() error { return e.error }

func (e *renumbered) Error() string {
	return position.ReplaceAllStringFunc(e.error.Error(), func(s string) string {
		k, err := strconv.Atoi(position.FindStringSubmatch(s)[1])
		if err != nil || k >= len(e.numbers) {
			return s
		}
		return fmt.Sprintf("event %d", e.numbers[k])
	})
}

func (i *importer) report() error {
	if i.only != nil {
		return nil
	}
	took := time.Since(i.started)
	if i.app.json() {
		return i.app.printJSON(map[string]any{
			"log": i.app.log, "events": i.recorded, "duplicates": i.duplicates, "lastIndex": i.last, "seconds": took.Seconds(),
		})
	}
	_, err := fmt.Fprintf(i.app.stdout, "recorded: %s in log %s, %d of them before; last index %d; %.1f s\n",
		count(i.recorded, "event"), i.app.log, i.duplicates, i.last, took.Seconds())
	return err
}
