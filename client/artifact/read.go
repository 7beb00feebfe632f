package artifact

import (
	"context"
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"sync"
)

// bufferBytes is how much is read at once: large enough that system calls cost nothing beside SHA-256, small enough to stay in cache.
const bufferBytes = 1 << 20

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}

// hashOpen reads an open regular file to its end and returns its digest and what the file said of itself, before and after. What it reads
// goes through the hashes of also too.
func hashOpen(ctx context.Context, f *os.File, progress func(int64), also ...io.Writer) (sum [sha256.Size]byte, info fs.FileInfo, err error) {
	if info, err = f.Stat(); err != nil {
		return sum, nil, err
	}
	if !info.Mode().IsRegular() {
		return sum, nil, ErrSpecial
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	h := sha256.New()
	w := io.MultiWriter(append(also, h)...) // hashes return no error
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return sum, nil, context.Cause(ctx)
		}
		n, err := f.Read(*buf)
		_, _ = w.Write((*buf)[:n])
		size += int64(n)
		if progress != nil && n > 0 {
			progress(int64(n))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return sum, nil, err
		}
	}
	after, err := f.Stat()
	if err != nil {
		return sum, nil, err
	}
	if size != info.Size() || !sameState(info, after) {
		return sum, nil, ErrChanged
	}
	h.Sum(sum[:0])
	return sum, info, nil
}

// sameState compares what every file system keeps: a write within one tick of the clock that leaves the size as it was goes unseen.
func sameState(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
