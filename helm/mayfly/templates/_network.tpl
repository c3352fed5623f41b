{{- /* CIDRs that functions and builds never reach, as a list in YAML: configured ones, and the
       addresses of the API server as the cluster knows them (nothing where there is no cluster, as
       in `helm template`). */}}
{{- define "mayfly.blocked" -}}
{{- $policy := .Values.networkPolicy }}
{{- range concat $policy.blockedCIDRs $policy.extraBlockedCIDRs $policy.apiServerCIDRs | uniq }}
- {{ . }}
{{- end }}
{{- range (lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes").endpoints }}
{{- range .addresses }}
- {{ . }}/{{ ternary "128" "32" (contains ":" .) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Rules: to the internet, without what is blocked. */}}
{{- define "mayfly.toInternet" -}}
{{- $blocked := include "mayfly.blocked" . | fromYamlArray }}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except:
          {{- range $blocked }}{{ if not (contains ":" .) }}
          - {{ . }}
          {{- end }}{{ end }}
    - ipBlock:
        cidr: ::/0
        except:
          {{- range $blocked }}{{ if contains ":" . }}
          - {{ . | quote }}
          {{- end }}{{ end }}
{{- end }}

{{- define "mayfly.toDns" -}}
{{- $dns := .Values.networkPolicy.dns }}
- to:
    - namespaceSelector:
        matchLabels:
          {{- toYaml $dns.namespaceLabels | nindent 10 }}
      podSelector:
        matchLabels:
          {{- toYaml $dns.podLabels | nindent 10 }}
    {{- range $dns.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- /* Pods of a component of this release. Argument: (list $ "component"). */}}
{{- define "mayfly.peer" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ (index . 0).Release.Namespace }}}
podSelector:
  matchLabels:
    {{- include "mayfly.selector" . | nindent 4 }}
{{- end }}

{{- /* A rule to host:port where the host is an IPv4 address; nothing for names.
       Argument: (list "host[:port]" default-port). */}}
{{- define "mayfly.toAddress" -}}
{{- $address := regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+(:[0-9]+)?" (index . 0) }}
{{- if $address }}
{{- $parts := splitList ":" $address }}
- to:
    - ipBlock: {cidr: {{ first $parts }}/32}
  ports:
    - {port: {{ if gt (len $parts) 1 }}{{ last $parts }}{{ else }}{{ index . 1 }}{{ end }}, protocol: TCP}
{{- end }}
{{- end }}

{{- /* Metrics: from anywhere but functions and builds. */}}
{{- define "mayfly.fromMonitoring" -}}
{{- if .Values.metrics.enabled }}
- from:
    - namespaceSelector:
        matchExpressions:
          - key: kubernetes.io/metadata.name
            operator: NotIn
            values: [{{ include "mayfly.functionsNamespace" . }}, {{ include "mayfly.buildsNamespace" . }}]
  ports:
    - {port: 9090, protocol: TCP}
{{- end }}
{{- end }}
