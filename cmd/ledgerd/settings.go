package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// envPrefix begins the name of every environment variable that ledgerd reads.
const envPrefix = "LEDGERD_"

// maxConfigBytes is far above any config file and far below what hurts.
const maxConfigBytes = 1 << 20

// setting is one field of Config under its name, with its comment. Flags, environment, file and manual are all made from this.
type setting struct {
	key    string
	env    string
	manual string // the field's comment, one line a source line
	field  int    // index in Config
}

// settings reads Config and its comments.
func settings() []setting {
	comments := fieldComments()
	t := reflect.TypeFor[Config]()
	out := make([]setting, t.NumField())
	for i := range out {
		key := t.Field(i).Tag.Get("yaml")
		out[i] = setting{
			key:    key,
			env:    envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")),
			manual: comments[t.Field(i).Name],
			field:  i,
		}
	}
	return out
}

// fieldComments returns the comment of each field of Config, from the embedded source.
func fieldComments() map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", configSource, parser.ParseComments)
	if err != nil {
		panic("ledgerd: its own source does not parse: " + err.Error()) // it was compiled from these bytes
	}
	comments := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Config" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			for _, name := range f.Names {
				comments[name.Name] = strings.TrimSpace(f.Doc.Text())
			}
		}
		return false
	})
	return comments
}

// set parses s into the setting's field of c.
func (s setting) set(c *Config, text string) error {
	switch v := reflect.ValueOf(c).Elem().Field(s.field).Addr().Interface().(type) {
	case *string:
		*v = text
	case *[]string:
		*v = nil
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*v = append(*v, item)
			}
		}
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		*v = b
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 30s", text)
		}
		*v = d
	default:
		panic(fmt.Sprintf("ledgerd: setting %s has a type that nothing parses: %T", s.key, v))
	}
	return nil
}

func (s setting) value(c *Config) any { return reflect.ValueOf(c).Elem().Field(s.field).Interface() }

// given is a flag's text as typed; it is parsed after file and environment, over them.
type given struct {
	text string
	kind string
}

func (g *given) Set(s string) error { g.text = s; return nil }
func (g *given) String() string     { return g.text }
func (g *given) Type() string       { return g.kind }

// flags adds one flag a setting to fs, showing the defaults of c, and returns where their texts land.
func flags(fs *pflag.FlagSet, all []setting, c *Config) map[string]*given {
	typed := make(map[string]*given, len(all))
	for _, s := range all {
		g := &given{kind: reflect.TypeOf(s.value(c)).String()}
		switch g.kind {
		case "time.Duration":
			g.kind = "duration"
		case "[]string":
			g.kind = "list"
		}
		first, _, _ := strings.Cut(strings.ReplaceAll(s.manual, "\n", " "), ". ")
		f := fs.VarPF(g, s.key, "", strings.TrimSuffix(first, ".")+" ["+s.env+"]")
		f.DefValue = fmt.Sprint(s.value(c))
		if g.kind == "list" {
			f.DefValue = ""
		}
		if g.kind == "bool" {
			f.NoOptDefVal = "true"
		}
		typed[s.key] = g
	}
	return typed
}

// load composes the configuration: defaults, then the file at path (none if empty), then environ, then the flags that were given.
// It returns every fault that it finds, joined, and the names of LEDGERD_ variables that mean nothing.
func load(path string, environ []string, fs *pflag.FlagSet, typed map[string]*given, all []setting) (Config, []string, error) {
	c := Defaults()
	var faults []error
	if path != "" {
		if err := loadFile(path, &c); err != nil {
			faults = append(faults, err)
		}
	}
	known := make(map[string]setting, len(all))
	for _, s := range all {
		known[s.env] = s
	}
	var strange []string
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		s, ok := known[name]
		switch {
		case ok && text != "":
			if err := s.set(&c, text); err != nil {
				faults = append(faults, fmt.Errorf("%s (environment): %w", name, err))
			}
		case !ok && strings.HasPrefix(name, envPrefix) && name != envPrefix+"CONFIG":
			strange = append(strange, name)
		}
	}
	for _, s := range all {
		if fs.Changed(s.key) {
			if err := s.set(&c, typed[s.key].text); err != nil {
				faults = append(faults, fmt.Errorf("--%s: %w", s.key, err))
			}
		}
	}
	slices.Sort(strange)
	return c, strange, errors.Join(append(faults, c.Validate())...)
}

func loadFile(path string, c *Config) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	if len(text) > maxConfigBytes {
		return fmt.Errorf("config file %s: larger than %d bytes", path, maxConfigBytes)
	}
	if err := decode(text, c); err != nil {
		return fmt.Errorf("config file %s: %w", path, err)
	}
	return nil
}

// decode reads YAML over c. An unknown or repeated key is a fault, not a setting that silently does nothing.
func decode(text []byte, c *Config) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	next := *c
	if err := dec.Decode(&next); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("has more than one YAML document")
	}
	for _, list := range []*[]string{&next.Members, &next.Join} {
		if len(*list) == 0 {
			*list = nil // an empty list and none are the same setting
		}
	}
	*c = next
	return nil
}

// printConfig writes c as YAML with the manual in comments. It parses back to c.
func printConfig(w io.Writer, c *Config) error {
	var b bytes.Buffer
	b.WriteString("# Configuration of ledgerd. Flag > environment > this file > default.\n")
	for _, s := range settings() {
		b.WriteString("\n")
		for line := range strings.Lines(s.manual + "\n") {
			b.WriteString("# " + line)
		}
		v := s.value(c)
		if d, ok := v.(time.Duration); ok {
			v = d.String()
		}
		line, err := yaml.Marshal(map[string]any{s.key: v})
		if err != nil {
			return err
		}
		b.Write(line)
	}
	_, err := w.Write(b.Bytes())
	return err
}
